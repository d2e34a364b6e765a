"""What the rooms below tell those above when they cannot do their work."""


class StartError(Exception):
    """The server cannot start. The text is one line: what is wrong, and what to do."""


class StoreUnavailable(Exception):  # noqa: N818 - a state of the world, told as it is
    """A store did not do what was asked; try again later. Whether it did it all the same is not known."""


class Duplicate(Exception):  # noqa: N818 - likewise
    """What was to be added is there already."""
