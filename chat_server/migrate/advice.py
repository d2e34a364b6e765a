"""What to do about an error: the end of error texts."""

NOT_EMPTY = "use a target that is empty, or has an unfinished copy of the same source"
RETRY = "run the same command again"
