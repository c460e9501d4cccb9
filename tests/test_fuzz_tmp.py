import collections
import json
import os
import random
import traceback

import pytest
from spoiling import copy_of, restore
from test_damaged_inputs import *

N=int(os.environ.get("FUZZ","60"))
@pytest.mark.parametrize(("command", "file"), sorted(JSON))
def test_fuzz(command, file, everything, capsys):
    content=json.loads((everything/file).read_text())
    every=list(edits(content)); random.Random(0).shuffle(every)
    bad=collections.OrderedDict()
    for e in every[:N]:
        (everything/file).write_text(json.dumps(e))
        try:
            rc=run(command)
        except BaseException as ex:
            tb=traceback.extract_tb(ex.__traceback__)
            mine=[f for f in tb if 'nnunet_brats_ext' in f.filename][-1]
            key=f"{type(ex).__name__} {str(ex)[:80]} at {Path(mine.filename).name}:{mine.lineno} / {Path(tb[-1].filename).name}:{tb[-1].lineno}"
            bad.setdefault(key,0); bad[key]+=1
        err=capsys.readouterr().err
        restore(everything, copy_of(everything))
    with open("/tmp/f16/fuzz.txt","a") as f:
        f.write(f"== {command} {file} tried {min(N,len(every))} of {len(every)}\n")
        for k,v in bad.items(): f.write(f"   {v}x {k}\n")
