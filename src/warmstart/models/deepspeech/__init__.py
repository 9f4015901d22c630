"""DeepSpeech as Mozilla DeepSpeech and Coqui STT made it: layers of width H around one LSTM, trained with CTC."""
