"""Other people's training loops around these classes: accelerate's and Lightning's."""

import pytest
import torch
from torch import nn

import fastopt.torch as ft

# both warn about this and that of their own: workers, loggers, deprecated imports
pytestmark = pytest.mark.filterwarnings("ignore")


def data():
    rng = torch.Generator().manual_seed(0)
    x = torch.randn(64, 5, generator=rng)
    return torch.utils.data.TensorDataset(x, x.sum(1, keepdim=True))


def model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 16), nn.Tanh(), nn.Linear(16, 1))


def assert_same(ours, theirs):
    # float32, 24 steps: rounding in another order
    torch.testing.assert_close(list(ours.parameters()), list(theirs.parameters()), rtol=1e-3, atol=1e-5)


def test_accelerate(tmp_path):
    accelerate = pytest.importorskip("accelerate", reason="accelerate is not installed")
    trained = []
    for lib in (ft, torch.optim):
        accelerator = accelerate.Accelerator(cpu=True, gradient_accumulation_steps=2)
        net = model()
        opt = lib.AdamW(net.parameters(), lr=0.01)
        schedule = torch.optim.lr_scheduler.StepLR(opt, 4, 0.5)
        loader = torch.utils.data.DataLoader(data(), batch_size=8)
        net, opt, loader, schedule = accelerator.prepare(net, opt, loader, schedule)
        for epoch in range(6):
            if epoch == 3:  # in the middle of the run the state goes to a folder and comes back
                accelerator.save_state(str(tmp_path / lib.__name__))
                accelerator.load_state(str(tmp_path / lib.__name__))
            for x, y in loader:
                with accelerator.accumulate(net):
                    accelerator.backward(nn.functional.mse_loss(net(x), y))
                    if accelerator.sync_gradients:
                        accelerator.clip_grad_norm_(net.parameters(), 1.0)
                    opt.step()
                    schedule.step()
                    opt.zero_grad()
        trained.append(accelerator.unwrap_model(net))
    assert_same(*trained)
    assert not torch.equal(trained[0][0].weight, model()[0].weight)


def test_lightning(tmp_path):
    lightning = pytest.importorskip("lightning", reason="lightning is not installed")

    class Module(lightning.LightningModule):
        def __init__(self, lib):
            super().__init__()
            self.net, self.lib = model(), lib

        def training_step(self, batch, _):
            x, y = batch
            return nn.functional.mse_loss(self.net(x), y)

        def configure_optimizers(self):
            opt = self.lib.AdamW(self.parameters(), lr=0.01)
            return [opt], [torch.optim.lr_scheduler.StepLR(opt, 1, 0.5)]

    def fit(module, epochs, **more):
        trainer = lightning.Trainer(
            accelerator="cpu",
            max_epochs=epochs,
            gradient_clip_val=1.0,
            enable_progress_bar=False,
            enable_model_summary=False,
            logger=False,
            enable_checkpointing=False,
            default_root_dir=tmp_path,
        )
        trainer.fit(module, torch.utils.data.DataLoader(data(), batch_size=16), **more)
        return trainer

    trained = []
    for lib in (ft, torch.optim):
        module = Module(lib)
        path = tmp_path / f"{lib.__name__}.ckpt"
        fit(module, 3).save_checkpoint(path)
        module = Module(lib)
        fit(module, 6, ckpt_path=path)
        trained.append(module)
    assert_same(*trained)
