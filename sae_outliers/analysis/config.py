"""What `sae_outliers.aggregate` can be told: the schema of conf/aggregate.yaml."""

from dataclasses import dataclass, field

from hydra.core.config_store import ConfigStore


@dataclass
class AggregateConfig:
    results_dir: str = "results"
    into: str | None = None  # the folder for tables/, figures/ and report.html; null: results_dir
    where: str | None = None  # aggregate only the records for which this condition on their columns holds
    allow_mixed: bool = False  # put records with different settings into one table
    # settings by which runs are told apart; seeds then are repetitions. Only what tells them apart is made
    by: list[str] = field(default_factory=list)
    # whose layers are expected besides those of the models seen: `paper`, or a folder of model configs
    expected: str | None = None
    reference: str | None = None  # CSV file with the columns of the authors' published table
    reference_trained: str | None = None  # CSV file with the columns of their table of trained SAEs


ConfigStore.instance().store(name="aggregate_schema", node=AggregateConfig)
