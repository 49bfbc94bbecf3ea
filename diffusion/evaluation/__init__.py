"""Evaluation: how good a model is. Evaluators measure it; a task names those that fit its data."""
from diffusion.evaluation import (bits, clip_score, decoder, points, prior, reconstruction, restoration, retrieval,
                                  sample_metrics, series, tables, text, tokens, validation, zero_shot)

EVALUATORS = dict(loss=validation.EVALUATOR, samples=sample_metrics.EVALUATOR, bound=bits.BOUND, ode=bits.ODE,
                  density=points.EVALUATOR, spectrum=series.EVALUATOR, nelbo=tokens.EVALUATOR, tables=tables.EVALUATOR,
                  text=text.EVALUATOR, retrieval=retrieval.EVALUATOR, zero_shot=zero_shot.EVALUATOR,
                  clip_score=clip_score.EVALUATOR, restoration=restoration.EVALUATOR,
                  reconstruction=reconstruction.EVALUATOR, prior=prior.EVALUATOR,
                  decoder=decoder.EVALUATOR)
