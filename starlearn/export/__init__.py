"""A fitted learner's ways out: its folder, a merged model, a page and a repository on a hub."""
