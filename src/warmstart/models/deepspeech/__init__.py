"""DeepSpeech and Coqui STT: three dense layers, an LSTM, two dense layers, trained with CTC on MFCCs."""
