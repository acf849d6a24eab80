"""Converts a small and then a large weight file, and prints by how many bytes the second one raised the peak memory.

Run by test_stages.py in a process of its own, on a JSON list of [family, weights, config, out].
"""

import json
import resource
import sys
from pathlib import Path

from cascade.stages import published

peaks = []
for family, weights, config, out in json.loads(Path(sys.argv[1]).read_text()):
    published.convert(family, weights, config, out)
    peaks.append(1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
print(peaks[1] - peaks[0])
