"""What to do, as lines to paste for the libraries that people train SAEs with.

Names that a recipe does not define are the user's own. tests/peers runs each as it stands in its library's trainer.
"""

from sae_outliers.diagnosis.centering import Centering

LOAD = """\
from sae_outliers import Centering

centering = Centering.load("centering.safetensors")  # d.recommended.centering.save("centering.safetensors") wrote it
"""

# SAELens starts b_dec at zeros
SAELENS_SHIFT = """\
import torch
from sae_lens import LanguageModelSAETrainingRunner
{load}
# cfg: your LanguageModelSAERunnerConfig; its sae has apply_b_dec_to_input=True and
# normalize_activations="{normalisation}"
runner = LanguageModelSAETrainingRunner(cfg)
with torch.no_grad():
    runner.sae.b_dec.copy_(centering.shift)
sae = runner.run()
"""

SAELENS_WHITEN = """\
from dataclasses import replace

from sae_lens import LanguageModelSAETrainingRunner

# cfg: your LanguageModelSAERunnerConfig; SAELens (6.5x) estimates the map by itself, of the tokens of
# cfg.n_batches_for_norm_estimate batches, and folds it into the weights
cfg.sae = replace(cfg.sae, normalize_activations="covariance_whitening")
sae = LanguageModelSAETrainingRunner(cfg).run()
"""

SAELENS_TRAINER_SHIFT = """\
import torch
from sae_lens.training.sae_trainer import SAETrainer
{load}
# sae: your TrainingSAE; its config has apply_b_dec_to_input=True and normalize_activations="{normalisation}"
with torch.no_grad():
    sae.b_dec.copy_(centering.shift)
sae = SAETrainer(cfg=cfg, sae=sae, data_provider=batches).fit()
"""

SAELENS_TRAINER_WHITEN = """\
from sae_lens.training.activation_scaler import ActivationWhitening
from sae_lens.training.sae_trainer import SAETrainer
{load}
# sae: your TrainingSAE; its config has normalize_activations="covariance_whitening" (SAELens 6.5x)
trainer = SAETrainer(cfg=cfg, sae=sae, data_provider=batches)
trainer.activation_scaler.whitening = ActivationWhitening(centering.shift, centering.linear, centering.inverse)
sae = trainer.fit()  # which folds the map into the weights
"""

# of its trainers those of the TopK family start b_dec at the geometric median of the first batch, the others at zeros
DICTIONARY_LEARNING = """\
import torch
from dictionary_learning.training import trainSAE
from dictionary_learning.utils import load_dictionary
{load}

class Centred:
    def __init__(self, buffer):
        self.buffer, self.config = buffer, getattr(buffer, "config", {{}})

    def __iter__(self):
        return ({apply} for x in self.buffer)


trainSAE(
    data=Centred(buffer), trainer_configs=trainer_configs, steps=steps, save_dir=save_dir, device=device
)
for i in range(len(trainer_configs)):  # the saved SAEs then take activations as they are
    ae, _ = load_dictionary(f"{{save_dir}}/trainer_{{i}}", device="cpu")
    torch.save(centering.cpu().fold_into(ae).state_dict(), f"{{save_dir}}/trainer_{{i}}/ae.pt")
"""

# sparsify starts b_dec at the mean of the first batch, unless it is told that it fine-tunes
SPARSIFY_SHIFT = """\
from sparsify import Trainer
{load}
trainer = Trainer(cfg, dataset, model)
for sae in trainer.saes.values():  # of the one hookpoint that was diagnosed
    sae.b_dec.data.copy_(centering.shift)
cfg.finetune = "b_dec is set"  # else it is overwritten by the mean of the first batch
trainer.fit()
"""

SPARSIFY_WHITEN = """\
from sparsify import Trainer
{load}
trainer = Trainer(cfg, dataset, model)
cfg.finetune = "b_dec stays 0"  # else it is overwritten by the mean of the first batch
for sae in trainer.saes.values():  # of the one hookpoint that was diagnosed
    sae.forward = lambda x, y=None, f=sae.forward, **kw: f(centering(x), None if y is None else centering(y), **kw)
trainer.fit()
for name, sae in trainer.saes.items():
    del sae.forward
    centering.fold_into(sae)  # the SAE then takes activations as they are
    sae.save_to_disk(f"centred/{{name}}")
"""

TORCH = """\
{load}
for x in batches:
    z = {apply}
    loss = (sae(z) - z).square().sum(1).mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
x_hat = centering.undo(sae({apply}))  # or, once and for all, sae = centering.fold_into(sae)
"""

SHIFTS = {"saelens": SAELENS_SHIFT, "saelens_trainer": SAELENS_TRAINER_SHIFT,
          "dictionary_learning": DICTIONARY_LEARNING, "sparsify": SPARSIFY_SHIFT, "torch": TORCH}  # fmt: skip
MAPS = SHIFTS | {"saelens": SAELENS_WHITEN, "saelens_trainer": SAELENS_TRAINER_WHITEN, "sparsify": SPARSIFY_WHITEN}
# what a recipe can do to tokens first
PREPARED = {"dictionary_learning": ("raw", "postln"), "sparsify": ("raw",), "torch": ("raw", "postln")}
SAELENS_NORMALISATIONS = {"raw": "none", "layer_norm": "layer_norm", "constant_norm_rescale": "constant_norm_rescale"}


def recipe(library: str, centering: Centering) -> str:
    """Return Python that centres in a library's training. Raises ValueError for another library."""
    if library not in SHIFTS:
        raise ValueError(f"there is no recipe for {library}: use one of {', '.join(SHIFTS)}")
    if centering.name == "off":
        return "# There is nothing to do: train as you would, on activations as they are.\n"
    template = (SHIFTS if centering.linear is None else MAPS)[library]
    kind = centering.preprocessing
    load, apply = LOAD, "centering(x)"
    if kind == "postln" and "{apply}" in template:
        load, apply = LOAD.replace("import Centering", "import Centering, postln"), "centering(postln(x))"
    normalisation = SAELENS_NORMALISATIONS.get(kind, "none")
    return _caution(library, kind) + template.format(load=load, apply=apply, normalisation=normalisation)


def _caution(library: str, kind: str) -> str:
    """Return a comment where a recipe does not do to tokens what was done before they were diagnosed."""
    does = SAELENS_NORMALISATIONS if library.startswith("saelens") else PREPARED[library]
    if kind in does:
        return ""
    return (
        f"# CAUTION: this centering is for tokens after preprocessing={kind}, which this recipe does not do: diagnose\n"
        f"# again with one of preprocessing={', '.join(does)}\n"
    )
