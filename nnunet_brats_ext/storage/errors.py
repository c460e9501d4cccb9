"""The one kind of error that a user can fix."""


class UserError(ValueError):
    """What is wrong with the user's input, in a sentence that quotes it and says what to do; shown without traceback."""
