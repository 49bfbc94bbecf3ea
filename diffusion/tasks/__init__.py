"""Tasks: what the data mean. To add one, write a file with a function that returns a Task, and list it here."""
from diffusion.tasks import (codes, embeddings, grey_levels, image, inpaint, latent, pairs, points, published,
                             restore, series, table, text_to_image, unclip, words)
from diffusion.tasks.base import Asked, Task

__all__ = ['Asked', 'Task', 'TASKS']
TASKS = dict(image=image.image, points=points.points, series=series.series, words=words.words,
             grey_levels=grey_levels.grey_levels, table=table.table,
             text_to_image=text_to_image.text_to_image, pairs=pairs.pairs, restore=restore.restore,
             inpaint=inpaint.inpaint, latent=latent.latent, embeddings=embeddings.embeddings,
             codes=codes.codes, unclip=unclip.unclip, published=published.published)
