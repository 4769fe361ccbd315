"""captum's side of attribution, on the embeddings of the prompt."""

from __future__ import annotations

import torch
from captum.attr import FeatureAblation, InputXGradient, IntegratedGradients, Saliency
from torch import Tensor

from benchmarks.peers.serve import serve
from benchmarks.peers.workers.attributing import Attributing
from benchmarks.peers.workers.shared import row

STEPS = 20


class Captum(Attributing):
    """The probability of the target by what captum calls the method."""

    def scores(self, ids: list[int], target: int) -> Tensor:
        """Attribute, and take the norm over the embedding's dimensions, as inseq does."""
        embedded = self.model.get_input_embeddings()(row(ids)).detach()

        def said(inputs: Tensor) -> Tensor:
            return self.model(inputs_embeds=inputs, logits_to_keep=1).logits[:, -1].softmax(-1)

        if self.method == "occlusion":
            mask = torch.arange(len(ids))[None, :, None].expand_as(embedded)
            with torch.no_grad():
                found = FeatureAblation(said).attribute(embedded, target=target, feature_mask=mask)
            return found[0, :, 0].abs()
        inputs = embedded.requires_grad_()
        if self.method == "integrated_gradients":
            found = IntegratedGradients(said).attribute(inputs, target=target, n_steps=STEPS, internal_batch_size=STEPS)
        else:
            kind = {"input_x_gradient": InputXGradient, "saliency": Saliency}[self.method]
            found = kind(said).attribute(inputs, target=target)
        return found[0].detach().norm(dim=-1)


if __name__ == "__main__":
    serve(Captum().jobs())
