"""Errors meant for the user: the command line shows their message without a traceback and exits with code 2."""


class HptError(Exception):
    """Something the user can fix; the message names what, where, and what is allowed."""


class ConfigError(HptError):
    """A recipe that cannot be run."""


class DataError(HptError):
    """A data file that cannot be used."""


class RolloutError(HptError):
    """A rollout engine that failed; the policy is as the last finished step left it."""


class RewardError(HptError):
    """A user's reward or verifier function that failed; the policy is as the last finished step left it."""
