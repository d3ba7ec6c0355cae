"""The one exception a user is meant to read: what is wrong, where, and the fix."""

import sys


class UserError(ValueError):
    """Raised at the border (config, files, data, shapes); scripts print one line."""


def explain(main, *args, **kwargs) -> None:
    """Runs a command line: what a user can fix is one line, all else a traceback."""
    try:
        main(*args, **kwargs)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
