"""Every error a command ends with, and its exit code (README, 'Exit codes').

HiernasError (1)
├── ConfigError (2)        what the user gave: a file, a field, an argument
├── Overtaken (3)          another controller is in charge
├── DamagedRun (4)         a record is not what it must be
├── MachineFault (5)       this machine cannot do the work (workers)
└── Unavailable (1)        does not answer now, worth trying again
    ├── StoreUnavailable       the store
    └── ExecutorUnavailable    what runs the attempts
"""


class HiernasError(Exception):
    """Something a person must know: what was given, what was expected, what to do."""

    exit_code = 1


class ConfigError(HiernasError):
    """A config, an argument or the environment is not usable."""

    exit_code = 2


class Overtaken(HiernasError):
    """Another controller is in charge of the run."""

    exit_code = 3


class DamagedRun(HiernasError):
    """A record of the run is not valid or contradicts the others."""

    exit_code = 4


class MachineFault(HiernasError):
    """The worker is well, its machine is not."""

    exit_code = 5


class Unavailable(HiernasError):
    """Something does not answer now; it is worth trying again."""


class StoreUnavailable(Unavailable):
    """The store does not answer now."""


class ExecutorUnavailable(Unavailable):
    """What runs the attempts does not answer now."""
