import os,sys
n=int(sys.argv[1]); root=sys.argv[2]
os.environ['XLA_FLAGS']=f'--xla_force_host_platform_device_count={n}'
import pathlib, json, time
import jax
from tests import tiny_job, runs
folder=pathlib.Path('/tmp/dev/tinyjob')
f=folder/'flags.json'
if f.exists(): flags=json.loads(f.read_text())
else:
  flags=tiny_job.make(folder); f.write_text(json.dumps(flags))
t=time.time()
r=runs.run(pathlib.Path(root),*flags,*sys.argv[3:])
print('seconds',time.time()-t, jax.device_count())
