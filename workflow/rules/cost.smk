# Time and memory of each method, one at a time and nothing beside it: `threads` takes every core.


rule cost:
    input:
        lambda w: assets(S.assets(dag.cost_cell(S, w))),
        tuned=lambda w: dag.tuned(S, w.model, w.corpus, w.variant),
    output:
        f"{R}/cost/{{model}}/{{corpus}}/{{variant}}/cost.json",
    params:
        suite=S.path,
        key=lambda w: dag.cost_cell(S, w).computed_key,
        seed=lambda w: dag.cost_cell(S, w).seed,
        identity=lambda w: dag.identity(dag.cost_cell(S, w), dag.cost_cell(S, w).computed_key),
        limits=dag.limits(S),
        needs=lambda w, input: dag.needs(input.tuned),
    log:
        f"{R}/logs/cost/{{model}}/{{corpus}}/{{variant}}.log",
    threads: workflow.cores
    resources:
        machine=1,
        gpu=dag.gpus(),
    retries: 2
    shell:
        "python -m harness.supervise cost --cold --record {output} --log {log} --threads {threads} {params.limits} {params.needs}"
        " --identity {params.identity:q} -- " + CELL + " --seed {params.seed}"
