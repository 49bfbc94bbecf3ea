"""Guidance by a CLIP or without a classifier: what does each do to the caption's content and to the images?

  python -m diffusion.main --config=configs/text_to_image.py
  python -m diffusion.main --config=configs/clip.py --config.seed=1 --workdir=runs/clip_b
  python -m diffusion.main --config=configs/noised_clip.py
  python -m experiments.run experiments/clip_guidance.py --model=runs/text_to_image --workdir=runs/clip_guidance

GLIDE (arXiv:2112.10741, section 5.1) compares guidance by a noised CLIP with classifier-free guidance, and finds the
latter better. Here, on one model: the noised CLIP guides the unconditional model, cfg(0), where classifier-free
guidance begins too. Consider caption_kind and caption_colour, which a judge of attributes gives, beside clip_score,
which another CLIP gives: the one that guides would only praise itself. A plain CLIP, 'clip_guidance(runs/clip, 30)',
guides through the estimate of x0, which takes a gradient of the whole network at every step: several times as long.
"""
MODE = 'evaluate'
METRIC = 'caption_kind'
FIXED = {'config.evaluate.parts': 'clip_score, text, samples', 'config.evaluate.clip': 'runs/clip_b'}
GUIDES = {'cfg({})': (0, 1, 2, 3, 5), 'clip_guidance(runs/noised_clip, {})': (30, 100, 300, 1000)}


def sweep():
  for guide, scales in GUIDES.items():
    for scale in scales:
      yield {'config.guide': guide.format(scale)} | FIXED
