"""The one exception that means the user's input, not our code, is at fault."""


class UserError(ValueError):
    """Input that cannot be used; the message names the place, what was expected, and the fix.

    Entry points print it without a traceback and exit with status 2.
    """
