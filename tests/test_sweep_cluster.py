"""Job files that work: the script runs here in place of Slurm, the YAML says what Kubernetes is to be told. Ray runs where it is installed."""
import importlib.util
import math
import os
import re
import subprocess
from pathlib import Path

from etils import epath
import pytest
import yaml

from experiments.sweep import cluster, local, trials
from tests.test_sweep_local import make, starts

ROOT = Path(__file__).parent.parent


def test_the_array_job_runs_each_trial_once(tmp_path, monkeypatch):
  workdir = epath.Path(tmp_path) / "it's a sweep"
  made = make(workdir, first='ok', second='ok', third='crash')
  for trial in made:
    trials.describe(trial)
  told = cluster.engine("slurm(partition=gpu, gpus=2, time='01:30:00', options='--account=x --qos=y')").write(made, workdir, 2)
  script = workdir / 'slurm' / 'sweep.sbatch'
  assert str(script) in told and f'--workdir={workdir}' in told
  options = re.findall('^#SBATCH --(.*)$', script.read_text(), re.M)
  assert {'array=1-3%2', 'partition=gpu', 'gpus=2', 'time=01:30:00', 'account=x', 'qos=y', 'cpus-per-task=4'} <= set(options)
  assert not any(option.startswith('mem') for option in options)
  bash = lambda *words, task=0: subprocess.run(['bash', *words, script], env=os.environ | dict(SLURM_ARRAY_TASK_ID=str(task)), cwd='/',
                                               capture_output=True, text=True)
  assert bash('-n').returncode == 0
  assert bash(task=2).returncode == 0
  assert [starts(trial) for trial in made] == [0, 1, 0] and trials.finished(made[1].folder)
  assert bash(task=3).returncode != 0
  assert local.last_line(made[2].folder) == 'error: the loss is not finite'
  left = local.start(make(workdir, first='slow')[0])  # somebody is at it already
  assert bash(task=1).returncode == 0 and bash(task=1).returncode == 0
  (made[0].folder / 'go').touch()
  left.process.wait(20)
  assert starts(made[0]) == 1


def test_a_slice_of_a_pod_for_each_trial(tmp_path):
  sweep = trials.load('experiments/schedules.py')
  made = trials.every(sweep, epath.Path(tmp_path), only='schedule=linear')
  engine = cluster.engine("jobset(image='gcr.io/p/i', bucket='gs://b/f/', accelerator='tpu-v5p-slice', topology='4x4x8', slices=2, queue=q)")
  told = engine.write(made, epath.Path(tmp_path), None)
  assert 'kubectl apply -f' in told and 'gs://b/f/trials' in told
  jobs = list(yaml.safe_load_all((tmp_path / 'jobset' / 'sweep.yaml').read_text()))
  assert len(jobs) == len(made) == 3 == len({job['metadata']['name'] for job in jobs})
  for job, trial in zip(jobs, made):
    assert job['kind'] == 'JobSet' and re.fullmatch('[a-z0-9]([-a-z0-9]*[a-z0-9])?', job['metadata']['name'])
    assert job['metadata']['labels'] == {'kueue.x-k8s.io/queue-name': 'q'}
    [replicated] = job['spec']['replicatedJobs']
    spec = replicated['template']['spec']
    [container] = spec['template']['spec']['containers']
    assert replicated['replicas'] == 2 and spec['parallelism'] == spec['completions']
    assert spec['parallelism'] * container['resources']['limits']['google.com/tpu'] == math.prod((4, 4, 8))
    assert spec['template']['spec']['nodeSelector'] == {
      'cloud.google.com/gke-tpu-accelerator': 'tpu-v5p-slice', 'cloud.google.com/gke-tpu-topology': '4x4x8'}
    words = container['command']
    assert words[:3] == ['python', '-m', 'diffusion.main'] and f'--workdir=gs://b/f/trials/{trial.name}/run' in words
    assert f'--config.predict={trial.overrides["config.predict"]}' in words and not any(str(tmp_path) in word for word in words)


@pytest.mark.skipif(not importlib.util.find_spec('ray'), reason='needs the extra [ray]')
def test_ray_runs_the_same_commands(tmp_path):
  made = make(tmp_path, first='ok', once='once', crash='crash')
  told, queue = {}, iter(made)
  stopped = cluster.engine('ray(cpus=1)').run(lambda: next(queue, None), lambda trial, *outcome: told.update({trial.name[:-2]: outcome}), jobs=2,
                                              timeout=None, retries=1, watch=lambda trial: '', show=lambda at_work: None, tick=.1)
  assert stopped is None
  assert told == dict(first=('finished', ''), once=('finished', ''), crash=('failed', 'exit code 1; its last line: error: the loss is not finite'))
  assert [starts(trial) for trial in made] == [1, 2, 2]
