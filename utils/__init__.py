"""What every command and model of KTT stands on."""
