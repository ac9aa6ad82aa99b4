# Raw outputs first, then grades: a metric can change without a model.


rule predict:
    input:
        train=f"{R}/runs/{{model}}/{{corpus}}/{{variant}}/seed{{seed}}/train.json",
        data=lambda w: assets([w.model, *dag.eval_assets(w.eval)]),
    output:
        f"{R}/runs/{{model}}/{{corpus}}/{{variant}}/seed{{seed}}/{{eval}}/predict.json",
    params:
        suite=S.path,
        key=lambda w: cell(w).predict_key(w.eval),
        identity=lambda w: dag.identity(cell(w), cell(w).predict_key(w.eval), w.eval),
        limits=dag.limits(S),
    log:
        f"{R}/logs/predict/{{model}}/{{corpus}}/{{variant}}/seed{{seed}}/{{eval}}.log",
    threads: lambda w: cell(w).protocol["threads"]
    priority: 5
    resources:
        gpu=dag.gpus(),
    retries: 2
    shell:
        "python -m harness.supervise predict --record {output} --log {log} --threads {threads} {params.limits}"
        " --needs {input.train} --identity {params.identity:q} -- "
        + CELL + " --seed {wildcards.seed} --eval {wildcards.eval}"


# As in train.smk: the first corpus's cells are answered at once.
use rule predict as predict_first with:
    output:
        f"{R}/runs/{{model}}/{{corpus,{dag.corpora(S)[0]}}}/{{variant}}/seed{{seed}}/{{eval}}/predict.json",
    priority: 20


ruleorder: predict_first > predict


rule score:
    input:
        lambda w: dag.score_inputs(S, w, assets),
    output:
        f"{R}/runs/{{model}}/{{corpus}}/{{variant}}/seed{{seed}}/{{eval}}/score.json",
    params:
        suite=S.path,
        key=lambda w: cell(w).score_key(w.eval),
        identity=lambda w: dag.identity(cell(w), cell(w).score_key(w.eval), w.eval),
        needs=lambda w, input: f"--needs {input[0]}" if w.variant != "majority" else "",
    log:
        f"{R}/logs/score/{{model}}/{{corpus}}/{{variant}}/seed{{seed}}/{{eval}}.log",
    priority: 30
    shell:
        "python -m harness.supervise score --cold --record {output} --log {log} --threads 1 {params.needs}"
        " --identity {params.identity:q} -- " + CELL + " --seed {wildcards.seed} --eval {wildcards.eval}"
