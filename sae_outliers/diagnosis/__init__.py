"""Will an SAE lose features on these activations, why, and what to do: `sae_outliers.diagnose` and its command."""
