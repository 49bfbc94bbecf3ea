"""Evaluation: how good a model is. Evaluators measure it; a task names those that fit its data."""
from diffusion.evaluation import bits, points, reconstruction, sample_metrics, series, tables, text, tokens, validation

EVALUATORS = dict(loss=validation.EVALUATOR, samples=sample_metrics.EVALUATOR, bound=bits.BOUND, ode=bits.ODE,
                  density=points.EVALUATOR, spectrum=series.EVALUATOR, nelbo=tokens.EVALUATOR, tables=tables.EVALUATOR,
                  text=text.EVALUATOR, reconstruction=reconstruction.EVALUATOR)
