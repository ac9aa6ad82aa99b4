# Records -> Parquet -> tables, figures, notebook. Changing a plot touches nothing above it.

C = f"{R}/collected"
PARQUET = [f"{C}/{name}.parquet" for name in ("runs", "curves", "items", "costs", "trials")] + [f"{C}/suite.json"]


rule collect:
    input:
        plan=f"{R}/plan.json",
        scores=dag.scores(S),
        costs=dag.costs(S),
        tuned=dag.tuned_records(S),
    output:
        PARQUET,
    params:
        code=dag.evidence_key("collect"),
    log:
        f"{R}/logs/collect.log",
    shell:
        "python -m evidence.collect --plan {input.plan} --out " + C + " > {log} 2>&1 || (cat {log} >&2; false)"


rule early_table:
    # A corpus's own table as soon as its cells are scored, long before the suite ends.
    input:
        plan=f"{R}/plan.json",
        scores=lambda w: dag.scores(S, w.corpus),
    output:
        f"{R}/tables/corpora/{{corpus}}.md",
    params:
        code=dag.evidence_key("tables"),
    log:
        f"{R}/logs/early_table/{{corpus}}.log",
    priority: 50
    shell:
        "python -m evidence.tables --plan {input.plan} --out " + R + "/tables/corpora --corpus {wildcards.corpus}"
        " > {log} 2>&1 || (cat {log} >&2; false); echo; cat {output}; echo"


rule tables:
    input:
        PARQUET,
    output:
        directory(f"{R}/tables/paper"),
    params:
        code=dag.evidence_key("tables"),
    log:
        f"{R}/logs/tables.log",
    shell:
        "python -m evidence.tables --collected " + C + " --out {output} > {log} 2>&1 || (cat {log} >&2; false)"


rule figures:
    input:
        PARQUET,
    output:
        directory(f"{R}/figures"),
    params:
        code=dag.evidence_key("figures"),
    log:
        f"{R}/logs/figures.log",
    shell:
        "python -m evidence.figures --collected " + C + " --out {output} > {log} 2>&1 || (cat {log} >&2; false)"


rule notebook:
    input:
        PARQUET,
        notebook="notebooks/{name}.ipynb",
    output:
        f"{R}/notebooks/{{name}}.ipynb",
    params:
        code=lambda w: dag.notebook_key(w.name),
    log:
        f"{R}/logs/notebook/{{name}}.log",
    shell:
        "python -m evidence.notebook {input.notebook} --collected " + C + " --out {output} > {log} 2>&1"
        " || (cat {log} >&2; false)"


rule report:
    # One static folder that opens from disk; links from it go to the tables, figures and records beside it.
    input:
        PARQUET,
        f"{R}/tables/paper",
        f"{R}/figures",
        [f"{R}/tables/reported", f"papers/{dag.paper(S)}/claims.yaml"] if dag.paper(S) else [],
    output:
        directory(f"{R}/report"),
    params:
        code=dag.evidence_key("report"),
        paper=f"--paper {dag.paper(S)}" if dag.paper(S) else "",
    log:
        f"{R}/logs/report.log",
    shell:
        "python -m evidence.report --collected " + C + " --out {output} {params.paper} > {log} 2>&1"
        " || (cat {log} >&2; false)"


rule summary:
    # The last word: what came out, and where everything is.
    input:
        PARQUET,
        expand(f"{R}/tables/corpora/{{corpus}}.md", corpus=dag.corpora(S)),
        f"{R}/tables/paper",
        f"{R}/figures",
        f"{R}/report",
        expand(f"{R}/notebooks/{{name}}.ipynb", name=["compare_two_methods", "learning_curves", "paper_tables"]),
        f"{R}/tables/reported" if dag.paper(S) else [],
    output:
        f"{R}/summary.md",
    params:
        code=dag.evidence_key("summary"),
    log:
        f"{R}/logs/summary.log",
    shell:
        "python -m evidence.summary --collected " + C + " --results " + R + " --out {output} 2> {log}"
        " || (cat {log} >&2; false)"


if dag.paper(S):

    rule paper_tables:
        # The paper's own tables beside what it reports, as papers/<paper>/tables.yaml describes them.
        input:
            PARQUET,
            f"papers/{dag.paper(S)}/tables.yaml",
            dag.reported(S),
        output:
            directory(f"{R}/tables/reported"),
        params:
            code=dag.evidence_key("paper_tables"),
            paper=dag.paper(S),
        log:
            f"{R}/logs/paper_tables.log",
        shell:
            "python -m evidence.paper_tables {params.paper} --collected " + C + " --out {output} > {log} 2>&1"
            " || (cat {log} >&2; false)"

    rule claims:
        # Only for a suite of papers/: changing a claim or a margin judges again, and runs nothing else.
        input:
            PARQUET,
            claims=f"papers/{dag.paper(S)}/claims.yaml",
        output:
            f"{R}/claims.md",
        params:
            code=dag.evidence_key("claims"),
            paper=dag.paper(S),
        log:
            f"{R}/logs/claims.log",
        shell:
            "python -m evidence.claims {params.paper} --collected " + C + " --out {output} > {log} 2>&1 || (cat {log} >&2; false)"


rule complete:
    # Fails while any row has no result, so that a suite never ends as if all were well.
    input:
        f"{R}/summary.md",
        [f"{R}/claims.md"] if dag.paper(S) else [],
        PARQUET,
    output:
        touch(f"{R}/complete"),
    log:
        f"{R}/logs/complete.log",
    shell:
        "python -m evidence.summary --collected " + C + " --strict > {log} 2>&1 || (tail -n 3 {log} >&2; false)"
