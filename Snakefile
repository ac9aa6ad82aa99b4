# Tuning Fork: every method x model x corpus x seed under one protocol, then tables and figures.
#   snakemake --cores all                          the default suite, config/quick.yaml
#   snakemake --cores all --config suite=smoke     another, by name or path
import sys

sys.path.insert(0, workflow.basedir)
from harness import dag

S = dag.suite(config, workflow.cores)
R = str(S.results)
if workflow.is_main_process:
    print(dag.stages(S), file=sys.stderr)

wildcard_constraints:
    seed=r"\d+", trial=r"\d+", model="[^/]+", corpus="[^/]+", variant="[^/]+", eval="[^/]+"

include: "workflow/rules/prepare.smk"
include: "workflow/rules/plan.smk"
include: "workflow/rules/train.smk"
include: "workflow/rules/tune.smk"
include: "workflow/rules/cost.smk"
include: "workflow/rules/evaluate.smk"
include: "workflow/rules/evidence.smk"

rule all:
    default_target: True
    input:
        f"{R}/complete",
