# Trials of a search, each a training with a seed that is never reported; then the choice, on which trainings wait.


def trial(w):
    return S.trial(w.model, w.corpus, w.variant, w.seed, w.trial)


rule trial:
    input:
        lambda w: assets(S.assets(trial(w))),
    output:
        f"{R}/tune/{{model}}/{{corpus}}/{{variant}}/trial{{trial}}/seed{{seed}}/train.json",
    params:
        suite=S.path,
        key=lambda w: trial(w).key,
        identity=lambda w: dag.identity(trial(w), trial(w).key),
        limits=dag.limits(S),
    log:
        f"{R}/logs/tune/{{model}}/{{corpus}}/{{variant}}/trial{{trial}}/seed{{seed}}.log",
    threads: lambda w: trial(w).protocol["threads"]
    priority: 2
    resources:
        gpu=dag.gpus(),
    retries: 2
    shell:
        "python -m harness.supervise train --record {output} --log {log} --threads {threads} {params.limits}"
        " --identity {params.identity:q} -- " + CELL + " --seed {wildcards.seed} --trial {wildcards.trial} --replace"


# As in train.smk: the first corpus's cells go first.
use rule trial as trial_first with:
    output:
        f"{R}/tune/{{model}}/{{corpus,{dag.corpora(S)[0]}}}/{{variant}}/trial{{trial}}/seed{{seed}}/train.json",
    priority: 12


ruleorder: trial_first > trial


rule tune:
    input:
        lambda w: dag.trial_records(S, w),
    output:
        f"{R}/tune/{{model}}/{{corpus}}/{{variant}}/tuned.json",
    params:
        suite=S.path,
        key=lambda w: S.tunings[w.model, w.corpus, w.variant].key,
        identity=lambda w: dag.tuned_identity(S, w),
    log:
        f"{R}/logs/tune/{{model}}/{{corpus}}/{{variant}}.log",
    priority: 40
    shell:
        "python -m harness.supervise tune --record {output} --log {log} --threads 1"
        " --identity {params.identity:q} -- " + CELL
