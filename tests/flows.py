"""What makes a flow of a few seconds out of any flow."""

from vilmedic_ssl import config as yaml_config


def shortened(path):
    """Overrides: one seed, two label budgets, two steps per stage."""
    stages = yaml_config.read_with_includes(yaml_config.find_file(path))["flow"]["stages"]
    cut = {"max_steps": 2, "epochs": 1, "batch_size": 8, "eval_every_steps": None, "eval_every": 1}
    words = [
        f"flow.stages.{name}.trainor.{key}={'null' if value is None else value}"
        for name, stage in stages.items()
        if stage.get("trainor") is not None
        for key, value in cut.items()
    ]
    budgets = "flow.budgets=[{samples: 12}, {fraction: 1.0}]"
    return ["num_workers=0", "device=cpu", "flow.seeds=[0]", "flow.draws=20", budgets, *words]
