"""What is trained: losses, how their times are drawn and how errors are weighted. Below, what a config can name."""
from diffusion.objectives import (adversarial, autoencoder, autoregressive, bottlenecks, contrastive, denoising,
                                  discrete, gaussian_diffusion, mixed, noisy_classifier, timesteps, variance, vdm,
                                  weighting)

OBJECTIVES = dict(
  denoising=gaussian_diffusion.denoising, vdm=vdm.vdm, classifier=noisy_classifier.classifier,
  discrete=discrete.discrete, mixed=mixed.mixed, contrastive=contrastive.contrastive,
  autoencoder=autoencoder.autoencoder, autoregressive=autoregressive.autoregressive)
BOTTLENECKS = dict(kl=bottlenecks.kl, gaussian=bottlenecks.gaussian, vq=bottlenecks.vq, fsq=bottlenecks.fsq)
LIKELIHOODS = dict(laplace=autoencoder.laplace, normal=autoencoder.normal, logistic=autoencoder.logistic)
ADVERSARIES = dict(hinge=adversarial.hinge)
TIMESTEPS = dict(
  uniform=timesteps.uniform, stratified=timesteps.stratified, table=timesteps.histogram,
  logit_normal=timesteps.logit_normal, edm_lognormal=timesteps.edm_lognormal, loguniform=timesteps.loguniform,
  log_logistic=timesteps.log_logistic, split_lognormal=timesteps.split_lognormal, v_diffusion=timesteps.v_diffusion,
  cosine_interpolated=timesteps.cosine_interpolated, loss_aware=timesteps.loss_aware)
WEIGHTS = dict(
  one=weighting.one, snr=weighting.snr, min_snr=weighting.min_snr, max_snr=weighting.max_snr,
  soft_min_snr=weighting.soft_min_snr, inverse_variance=weighting.inverse_variance, p2=weighting.p2, edm=weighting.edm,
  vlb=weighting.vlb, sigmoid=weighting.sigmoid)
NOISES = dict(
  gaussian=denoising.gaussian_noise, offset=denoising.offset_noise, perturbed=denoising.perturbed_noise,
  paired=denoising.minibatch_ot_noise)
ERRORS = dict(mse=denoising.mse, mae=denoising.mae, huber=denoising.huber)
VARIANCES = dict(fixed=variance.fixed, learned=variance.learned, learned_log=variance.learned_log)
SCHEDULES = dict(learned=vdm.learned)  # beside those of core: it is trained with the network
