"""What a user may give is read right or refused in one line: some of the cases of experiments/benchmarks/fuzz.py."""
import pytest

pytest.importorskip('hypothesis', reason='the extra [test] is not installed')
from experiments.benchmarks import fuzz  # noqa: E402

NUMBER = 200


@pytest.mark.parametrize('kind', fuzz.CASES)
def test_generated_input_is_read_right_or_refused_in_one_line(kind, monkeypatch, tmp_path):
  monkeypatch.setenv('DIFFUSION_CACHE', str(tmp_path))
  counts = fuzz.run(kind, NUMBER // len(fuzz.CASES))
  assert counts['read'], 'nothing was read: the cases are all invalid'
