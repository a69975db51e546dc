"""Names of tasks that are reserved: every list of tasks and every suite means the same by them."""

BASE_TASK = "__base__"  # no adapter: the backbone alone
MEAN_TASK = "__mean__"  # the mean of all task rows
RESERVED_NAMES = ("", BASE_TASK, MEAN_TASK)
