"""Tasks: what the data mean. To add one, write a file with a function that returns a Task, and list it here."""
from diffusion.tasks import image, points, series, table
from diffusion.tasks.base import Asked, Task

__all__ = ['Asked', 'Task', 'TASKS']
TASKS = dict(image=image.image, points=points.points, series=series.series, table=table.table)
