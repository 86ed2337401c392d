"""Every error that flagsplit raises on purpose.

    FlagsplitError
    ├── UsageError           you asked for something that cannot be; the message says what can (exit code 2)
    │   ├── ModelError       the model file is damaged, too large, or uses what FlagIR does not have
    │   ├── BundleError      the bundle is damaged, of another version, or not the one expected
    │   ├── PolicyError      the SLA, device, link or tier description is wrong or cannot be met
    │   ├── InputError       an inference input has the wrong name, dtype or shape
    │   └── ConfigError      keys, addresses, files and options
    ├── PeerError            the other side or the link failed; trying again may help (exit code 1)
    │   ├── ProtocolError    a peer sent something the protocol does not allow
    │   ├── RefusedError     a peer refused us, with its reason
    │   └── UnavailableError no tier that is alive can answer within the deadline
    └── InternalError        our bug; the message says what to report (exit code 1)

A message says what was expected, what came, and what to do. The layers below `apps` raise these and print nothing.
"""


class FlagsplitError(Exception):
    """Base of everything that flagsplit raises on purpose."""


class UsageError(FlagsplitError):
    """The caller asked for something that cannot be."""


class ModelError(UsageError):
    """The model is damaged, too large, or uses what FlagIR does not have."""


class BundleError(UsageError):
    """The bundle is damaged, of another version, or not the one expected."""


class PolicyError(UsageError):
    """The SLA, device, link or tier description is wrong or cannot be met."""


class InputError(UsageError):
    """An inference input has the wrong name, dtype or shape."""


class ConfigError(UsageError):
    """Keys, addresses, files or options are wrong."""


class PeerError(FlagsplitError):
    """The other side or the link failed."""


class ProtocolError(PeerError):
    """A peer sent something the protocol does not allow."""


class RefusedError(PeerError):
    """A peer refused us; the message carries its reason."""


class UnavailableError(PeerError):
    """No tier that is alive can answer within the deadline."""


class InternalError(FlagsplitError):
    """A bug in flagsplit."""
