"""Tasks: what the data mean. To add one, write a file with a function that returns a Task, and list it here."""
from diffusion.tasks import image
from diffusion.tasks.base import Task

__all__ = ['Task', 'TASKS', 'image']
TASKS = dict(image=image.image)
