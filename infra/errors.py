"""What a user can cause, told apart by exit code. The command line prints the message alone, never a traceback."""


class CommandError(Exception):
    """A command that cannot go on. The message says what was wrong, where, and what to do."""

    exit_code = 1


class BadInputError(CommandError):
    """A path, a file or a setting that is not usable."""

    exit_code = 3


class MadeFromOtherError(CommandError):
    """A table that is there already was made from other inputs or by another recipe."""

    exit_code = 4


class StorageError(CommandError):
    """Storage is full, read-only or out of reach."""

    exit_code = 5


class RowsLostError(CommandError):
    """Rows in are not rows out plus rejects: the books do not close."""

    exit_code = 6


class StageFailedError(CommandError):
    """A stage ended before its work was done; what it had committed is kept."""

    exit_code = 7


class SupersededError(CommandError):
    """A later run has taken over the table this one was writing; what this one had committed is kept."""

    exit_code = 8


class TerminatedError(CommandError):
    """The command was told to end (SIGTERM) and has saved what was done: 128 and the signal's number, as shells have it."""

    exit_code = 143


def command_error(error: BaseException | None) -> CommandError | None:
    """The user's error behind an exception, also where Ray carried it over from a worker."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        if isinstance(error, CommandError):
            return error
        seen.add(id(error))
        error = getattr(error, "cause", None) or error.__cause__ or error.__context__
    return None
