"""The one error a user can cause: a single clear line, exit code 2."""


class InputError(ValueError):
    """What is wrong, where, and what to do, in one line. Command lines print it and exit with 2."""


class BrokenModelError(InputError):
    """A method gave no usable model, however often it was tried."""
