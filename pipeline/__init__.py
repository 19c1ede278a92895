"""The shell around the domain: stores, executors, the controller, the command line."""
