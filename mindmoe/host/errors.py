"""The errors a user can cause. The CLI prints them as one message, without a stack trace.

Everything else that is raised is a bug of ours and keeps its stack trace.
"""


class UserError(ValueError):
    """A mistake in what the user gave us: says what, where, the rule and the remedy.

    Args:
        message: one sentence holding the value, the place and the rule.
        remedy: what to do about it, as an imperative clause.
    """

    def __init__(self, message: str, remedy: str = ""):
        super().__init__(f"{message}: {remedy}" if remedy else message)
        self.message = message
        self.remedy = remedy


class ConfigError(UserError):
    """Every mistake of one config at once, each with its file and line."""

    def __init__(self, problems: list[str]):
        self.problems = problems
        count = "1 error" if len(problems) == 1 else f"{len(problems)} errors"
        super().__init__(f"{count} in the config\n  " + "\n  ".join(problems))


class CheckpointError(UserError):
    """A checkpoint that is incomplete, corrupt, or belongs to another model."""
