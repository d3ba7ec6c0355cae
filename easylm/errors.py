"""The one exception a user is meant to read: what is wrong, where, and the fix."""


class UserError(ValueError):
    """Raised at the border (config, files, data, shapes); scripts print one line."""
