"""The program that tests of sweeps run instead of diffusion.main: FOLDER BEHAVIOUR VALUE.

It counts its starts, writes a curve, then a record. Behaviour: ok, crash, hang (with a child process), slow (until the
file `go` is in its folder), talk (prints for three seconds), once (crashes at its first start).
"""
import json
import pathlib
import subprocess
import sys
import time


def record(value, half=1., metric='fd_infinity', n=500, **protocol):
  """The text of an evaluation.json."""
  estimate = dict(value=value, error=half / 2, low=value - half, high=value + half, n=n)
  samples = dict(reference='sprites', reference_hash='a1', split='train') | protocol
  return json.dumps(dict(format=1, protocol=dict(samples=samples), metrics={metric: estimate},
                         subject=dict(seed=1, versions=dict(jax='0.10.2'))))


def main(folder, behaviour, value):
  starts = folder / 'starts'
  starts.write_text((starts.read_text() if starts.exists() else '') + 'x')
  (folder / 'run').mkdir(parents=True, exist_ok=True)
  points = [dict(step=step, time=time.time(), loss=1 / (1 + step), heldout_loss=value / (1 + step))
            for step in range(0, 100, 10)]
  (folder / 'run' / 'metrics.jsonl').write_text(''.join(json.dumps(point) + '\n' for point in points))
  if behaviour == 'crash' or behaviour == 'once' and starts.read_text() == 'x':
    sys.exit('error: the loss is not finite')
  if behaviour == 'hang':
    child = subprocess.Popen(['sleep', '1000'])
    (folder / 'child').write_text(str(child.pid))
    time.sleep(1000)
  for second in range(15 if behaviour == 'talk' else 0):
    print(second, flush=True)
    time.sleep(.2)
  while behaviour == 'slow' and not (folder / 'go').exists():
    time.sleep(.02)
  (folder / 'evaluation').mkdir(exist_ok=True)
  (folder / 'evaluation' / 'evaluation.json').write_text(record(value))


if __name__ == '__main__':
  main(pathlib.Path(sys.argv[1]), sys.argv[2], float(sys.argv[3]))
