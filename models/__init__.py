"""What a model is: card, preprocessing, losses, geometry, tasks. numpy and pydantic; torch only in `models.nets`."""
