"""The domain: what is searched, how it is bred, trained and recorded. No store, no cluster, no clock."""
