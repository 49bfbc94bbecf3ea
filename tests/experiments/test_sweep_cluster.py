"""Job files that work: the script runs here without Slurm, the YAML is parsed. Ray runs if it is installed."""
import importlib.util
import math
import os
import re
import subprocess
from pathlib import Path

from etils import epath
import pytest
import yaml

from experiments import run
from experiments.sweep import cluster, local, sweep_file, trials
from tests.experiments.test_sweep_local import eventually, make, starts

ROOT = Path(__file__).parents[2]


def test_the_array_job_runs_each_trial_once(tmp_path, monkeypatch):
  workdir = epath.Path(tmp_path) / "it's a sweep"
  made = make(workdir, first='ok', second='ok', third='crash')
  for trial in made:
    trials.describe(trial)
  engine = cluster.engine("slurm(partition=gpu, gpus=2, time='01:30:00', options='--account=x --qos=y')")
  message = engine.write(made, workdir, 2)
  script = workdir / 'slurm' / 'sweep.sbatch'
  assert str(script) in message and f'--workdir={workdir}' in message
  options = re.findall('^#SBATCH --(.*)$', script.read_text(), re.M)
  assert set(options) >= {'array=1-3%2', 'partition=gpu', 'gpus=2', 'time=01:30:00', 'account=x', 'qos=y',
                          'cpus-per-task=4'}
  assert not any(option.startswith('mem') for option in options)
  task_id = lambda task: os.environ | dict(SLURM_ARRAY_TASK_ID=str(task))
  bash = lambda *words, task=0: subprocess.run(['bash', *words, script], env=task_id(task), cwd='/',
                                               capture_output=True, text=True)
  assert bash('-n').returncode == 0
  assert bash(task=2).returncode == 0
  assert [starts(trial) for trial in made] == [0, 1, 0] and trials.finished(made[1].folder)
  assert bash(task=3).returncode != 0
  assert local.last_line(made[2].folder) == 'error: the loss is not finite'
  (made[0].folder / 'lock').write_text('{"pid": 1, "started": 0, "host": "elsewhere"}')  # of an earlier attempt
  waits = make(workdir, first='slow')
  engine = cluster.engine('slurm')
  engine.write(waits, workdir, None)
  job = subprocess.Popen(['bash', script], env=task_id(1))
  eventually(lambda: starts(waits[0]))
  assert (made[0].folder / 'lock').read_text() == '' and local.start(waits[0]).pid == 0
  job.kill()
  job.wait()
  (made[0].folder / 'starts').unlink()
  engine.write(made, workdir, None)
  left = local.start(make(workdir, first='slow')[0])  # somebody else runs it already
  assert bash(task=1).returncode == 0 and bash(task=1).returncode == 0
  (made[0].folder / 'go').touch()
  left.process.wait(20)
  assert starts(made[0]) == 1


def test_a_tpu_host_for_each_trial(tmp_path):
  sweep = sweep_file.load('experiments/schedules.py')
  made = trials.every(sweep, epath.Path(tmp_path), only='schedule=linear')
  engine = cluster.engine("jobset(image='gcr.io/p/i', bucket='gs://b/f/', accelerator='tpu-v5p-slice', "
                          "topology='2x2x1', queue=q)")
  message = engine.write(made, epath.Path(tmp_path), None)
  assert 'kubectl apply -f' in message and 'gs://b/f/trials' in message
  jobs = list(yaml.safe_load_all((tmp_path / 'jobset' / 'sweep.yaml').read_text()))
  assert len(jobs) == len(made) == 3 == len({job['metadata']['name'] for job in jobs})
  for job, trial in zip(jobs, made):
    assert job['kind'] == 'JobSet' and re.fullmatch('[a-z0-9]([-a-z0-9]*[a-z0-9])?', job['metadata']['name'])
    assert job['metadata']['labels'] == {'kueue.x-k8s.io/queue-name': 'q'}
    [replicated] = job['spec']['replicatedJobs']
    spec = replicated['template']['spec']
    [container] = spec['template']['spec']['containers']
    assert replicated['replicas'] == spec['parallelism'] == spec['completions'] == 1  # the program is one process
    assert container['resources']['limits']['google.com/tpu'] == math.prod((2, 2, 1))
    assert spec['template']['spec']['nodeSelector'] == {
      'cloud.google.com/gke-tpu-accelerator': 'tpu-v5p-slice', 'cloud.google.com/gke-tpu-topology': '2x2x1'}
    words = container['command']
    assert words[:3] == ['python', '-m', 'diffusion.main'] and f'--workdir=gs://b/f/trials/{trial.name}/run' in words
    assert f'--config.predict={trial.overrides["config.predict"]}' in words
    assert not any(str(tmp_path) in word for word in words)


def test_a_local_model_is_not_for_a_pod(tmp_path, monkeypatch, capsys):
  config = sweep_file.recipe_config('configs/cosine_ddim.py')
  monkeypatch.setattr(sweep_file, 'trained_model', lambda workdir: (config, 5, 'a1'))
  words = ['experiments/guidance.py', f'--workdir={tmp_path}', '--engine=jobset(image=i, bucket=gs://b/c)',
           '--only=guide=cfg(1)']
  assert run.main([*words, '--model=runs/cosine_ddim']) == 2
  assert '--model=runs/cosine_ddim is a local folder' in capsys.readouterr().err
  assert not (tmp_path / 'trials').exists()
  assert run.main([*words, '--model=gs://b/m']) == 0
  [job] = yaml.safe_load_all((tmp_path / 'jobset' / 'sweep.yaml').read_text())
  [replicated] = job['spec']['replicatedJobs']
  assert '--workdir=gs://b/m' in replicated['template']['spec']['template']['spec']['containers'][0]['command']


@pytest.mark.skipif(not importlib.util.find_spec('ray'), reason='needs the extra [ray]')
def test_ray_runs_the_same_commands(tmp_path):
  made = make(tmp_path, first='ok', once='once', crash='crash', hang='hang', bad='hang')
  bad = lambda trial: 'no good' if trial is made[4] and (trial.folder / 'child').exists() else ''
  outcomes, queue = {}, iter(made)
  tell = lambda trial, *outcome: outcomes.update({trial.name[:-2]: outcome})
  stopped = cluster.engine('ray(cpus=1)').run(
    lambda: next(queue, None), tell, jobs=2, timeout=None, idle=12, retries=1, watch=bad, show=lambda at_work: None,
    tick=.1)
  assert stopped is None
  assert outcomes.pop('hang')[1].startswith('wrote nothing for 0.2 minutes')
  assert outcomes == dict(first=('finished', ''), once=('finished', ''), bad=('pruned', 'no good'),
                          crash=('failed', 'exit code 1; its last line: error: the loss is not finite'))
  assert [starts(trial) for trial in made] == [1, 2, 2, 2, 1]
  states = [local.state(trial.folder)['status'] for trial in made]
  assert states == ['finished', 'finished', 'failed', 'failed', 'pruned']
  assert not any(local.alive(trial.folder) for trial in made)
