# One job is one training. Checkpoints and curves lie undeclared beside the record, so an interrupted job keeps them.


def cell(w):
    return S.training(w.model, w.corpus, w.variant, w.seed)


CELL = "--suite {params.suite} --model {wildcards.model} --corpus {wildcards.corpus} --variant {wildcards.variant}"


rule train:
    input:
        lambda w: assets(S.assets(cell(w))) if cell(w).trains else [],
        tuned=lambda w: dag.tuned(S, w.model, w.corpus, w.variant),
    output:
        f"{R}/runs/{{model}}/{{corpus}}/{{variant}}/seed{{seed}}/train.json",
    params:
        suite=S.path,
        key=lambda w: cell(w).key,
        identity=lambda w: dag.identity(cell(w), cell(w).key),
        limits=dag.limits(S),
        needs=lambda w, input: dag.needs(input.tuned),
    log:
        f"{R}/logs/train/{{model}}/{{corpus}}/{{variant}}/seed{{seed}}.log",
    threads: lambda w: cell(w).protocol["threads"] if cell(w).trains else 1
    resources:
        gpu=lambda w: dag.gpus() if cell(w).trains else 0,
    retries: 2
    shell:
        "python -m harness.supervise train --record {output} --log {log} --threads {threads} {params.limits} {params.needs}"
        " --identity {params.identity:q} -- " + CELL + " --seed {wildcards.seed} --replace"


# The first corpus of a suite goes before the others, so that its table is there early.
use rule train as train_first with:
    output:
        f"{R}/runs/{{model}}/{{corpus,{dag.corpora(S)[0]}}}/{{variant}}/seed{{seed}}/train.json",
    priority: 10


ruleorder: train_first > train
