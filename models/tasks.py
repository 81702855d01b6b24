"""The tasks by name: a new kind of model is a file with the verbs of `models.task.Task` and a line here."""

from models.classify import Binary, Multiclass, Multilabel
from models.task import Task

TASKS: dict[str, Task] = {"multiclass": Multiclass(), "multilabel": Multilabel(), "binary": Binary()}
