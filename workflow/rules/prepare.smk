# Assets and the list of cells. `prepare` alone downloads; on a cluster both run where Snakemake does.
from harness.assets import cache

ASSETS = str(cache())


localrules:
    prepare,
    cells,


def assets(names):
    """Records of the assets that are fetched; a random-init model is none."""
    return [f"{ASSETS}/{name}/asset.json" for name in names if dag.is_fetched(name)]


rule prepare:
    output:
        f"{ASSETS}/{{asset}}/asset.json",
    params:
        source=lambda w: dag.asset_key(w.asset),
    log:
        f"{R}/logs/prepare/{{asset}}.log",
    priority: 100
    resources:
        network=1,
    shell:
        "python -m harness.supervise prepare --record {output} --log {log} -- {wildcards.asset}"


rule cells:
    output:
        f"{R}/plan.json",
    params:
        suite=S.path,
        key=dag.plan_key(S),
    log:
        f"{R}/logs/cells.log",
    priority: 100
    shell:
        "python -m harness.suite {params.suite} --out {output} 2> {log} || (cat {log} >&2; false)"
