# What the suite will cost, before anything is spent; needs nothing that is fetched. Made anew each time: records come and go.
import time


rule plan:
    output:
        md=f"{R}/cost_plan.md",
        csv=f"{R}/cost_plan.csv",
        json=f"{R}/cost_plan.json",
    params:
        suite=S.path,
        device=f"--device-memory {config['device_memory']}" if "device_memory" in config else "",
        now=time.time(),
    log:
        f"{R}/logs/plan.log",
    threads: workflow.cores
    shell:
        "python -m harness.plan --suite {params.suite} --out " + R + " {params.device} 2> {log} || (cat {log} >&2; false)"
