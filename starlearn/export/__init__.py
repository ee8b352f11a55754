"""Export of a fitted learner: its folder, a merged model, a model card and a hub repository."""
