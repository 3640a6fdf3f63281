"""The handler of Task Manager's worker."""


def noop(task):
    pass
