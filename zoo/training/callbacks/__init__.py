"""What follows a fit: the best weights are saved as a component, tested beside others, compared with a control run.

trainer = Trainer(callbacks=[SaveComponent("runs/pet"), TestBeside(["general_mobilenetv3s050.world"])])
trainer.fit(model, data)
results = follow_fit(trainer, model, data).results
"""

from zoo.training.callbacks.control import ControlRun
from zoo.training.callbacks.follow import AfterFit, FinishedFit, callbacks_of, follow_fit
from zoo.training.callbacks.last_is_best import LastIsBest
from zoo.training.callbacks.save import SaveComponent
from zoo.training.callbacks.test_beside import TestBeside

__all__ = [
    "AfterFit",
    "ControlRun",
    "FinishedFit",
    "LastIsBest",
    "SaveComponent",
    "TestBeside",
    "callbacks_of",
    "follow_fit",
]
