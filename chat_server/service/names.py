"""User names: the form in which they are compared, and which names are valid (protocol section 1)."""

import unicodedata

from chat_server.utils.invisible import has_invisible

MAX_LENGTH = 64
# NFC combines at most four code points into one, so longer input cannot become a valid name.
MAX_INPUT = 4 * MAX_LENGTH
RULES = "1 to 64 letters, digits and _ - . @, at least one letter or digit, nothing invisible, neither System nor ALL"
GROUP_SIGN = "#"  # begins the name of a group, and occurs in no name of a user
GROUP_RULES = "# and 1 to 63 letters, digits and _ - . @, at least one letter or digit, nothing invisible"
RESERVED = frozenset({"system", "all"})  # senders of the protocol itself


def normal(name: str) -> str:
    """The form in which a name is stored and compared: NFC.

    Normalisation is quadratic for hostile input. Longer input than any name is cut instead: the result is still too
    long to be a name.
    """
    if len(name) > MAX_INPUT:
        return name[: MAX_INPUT + 1]
    return name if name.isascii() else unicodedata.normalize("NFC", name)


def is_name(name: str) -> bool:
    """Whether a user may have this (normal) name. Existing users may have names that are no longer available."""
    return (
        1 <= len(name) <= MAX_LENGTH
        and all(char in "_-.@" or unicodedata.category(char)[0] in "LMN" for char in name)
        and unicodedata.normalize("NFKC", name).casefold() not in RESERVED
    )


def is_available(name: str) -> bool:
    """Whether a new user may take this (normal) name, if it is free."""
    return is_name(name) and any(unicodedata.category(char)[0] in "LN" for char in name) and not has_invisible(name)


def is_group_name(name: str) -> bool:
    """Whether a new group may take this (normal) name, if it is free: # and 1 to 63 characters of a user name."""
    return name[:1] == GROUP_SIGN and len(name) <= MAX_LENGTH and is_available(name[1:])
