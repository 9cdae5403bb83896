"""Errors meant for the user: the command line shows their message without a traceback and exits with code 2."""


class HptError(Exception):
    """Something the user can fix; the message names what, where, and what is allowed."""


class ConfigError(HptError):
    """A recipe that cannot be run."""


class DataError(HptError):
    """A data file that cannot be used."""


class StepError(HptError):
    """A step that failed on every rank, while the policy was as the last finished step left it."""


class RolloutError(StepError):
    """A rollout engine that failed."""


class RewardError(StepError):
    """A user's reward or verifier function that failed."""


class MethodError(StepError):
    """A gate or an advantage estimator that failed."""
