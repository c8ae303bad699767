"""The one error a user can cause: a single clear line, exit code 2."""


class InputError(ValueError):
    """What is wrong, where, and what to do, in one line. Command lines print it and exit with 2."""


class BrokenModelError(InputError):
    """A method gave no usable model, however often it was tried."""


def first_line(error: BaseException) -> str:
    """Of what an error says, or its kind where it says nothing."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def printable(text: object, n_characters: int = 2000) -> str:
    """One line that a terminal can show whatever is in it: control characters escaped, the middle left out if long."""
    line = "".join(c if c.isprintable() else repr(c)[1:-1] for c in " ".join(str(text).split()))
    half = n_characters // 2
    return line if len(line) <= n_characters else f"{line[:half]} ... {line[-half:]}"
